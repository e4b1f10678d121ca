"""Composes demonstrations.jsonl: invented tenancy agreements and dispute records of about 600 words, each with a summary.

    python data/tenancy-summaries/compose.py

Every clause was written for this set; people, places and sums are invented. A document is drawn by its number: the same
script writes the same file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCUMENTS = 48
TEST, VALIDATION = 12, 4
ASK = "Summarise this document for a reader who decides whether to act on it. State the parties, sums and dates.\n\n"

LANDLORDS = (
    "Maren Oakhill",
    "Brookside Lettings",
    "Tobias Fenner",
    "Ashgrove Trust",
    "Ines Caldwell",
    "Harbour Row Homes",
)
TENANTS = (
    "Jonas Reed",
    "Petra Linwood",
    "Samir Haddow",
    "Elin Marsh",
    "Owen and Ruth Tarrant",
    "Noor Bexley",
    "Callum Voss",
)
HOMES = (
    ("a two-room flat on the third floor", "14 Quarry Street, Elmford"),
    ("a terraced house with a small yard", "3 Tanner's Row, Westmere"),
    ("an attic flat under a slate roof", "27 Mill Lane, Hartwell"),
    ("a ground-floor flat beside the canal", "8 Lock View, Dunbury"),
    ("a furnished studio above a bakery", "51 Market Hill, Elmford"),
)
MONTHS = ("January", "March", "April", "June", "August", "September", "November")
FAULTS = (
    ("a leak in the bathroom ceiling", "plumber", "the ceiling was dry but the plaster had not been replaced"),
    (
        "a boiler that failed in the evenings",
        "heating engineer",
        "the boiler ran, but the pressure valve was still the old one",
    ),
    (
        "black mould behind the bedroom wardrobe",
        "surveyor",
        "the mould came from a cold bridge in the outer wall, not from drying clothes",
    ),
    ("a front door that no longer locked", "locksmith", "the frame had warped and the lock itself was sound"),
    ("rats in the cellar", "pest controller", "a broken drain cover in the yard was the way in"),
)

AGREEMENT = (
    (
        "This agreement is made between {landlord} (the landlord) and {tenant} (the tenant). It concerns "
        "{home} at {address}. The tenancy begins on {day} {month} {year} and runs for {term} months. If "
        "neither side ends it by then, it continues from month to month on the same terms.",
        "{landlord}, as landlord, lets {home} at {address} to {tenant}, as tenant. The first day of the "
        "tenancy is {day} {month} {year}. It is agreed for {term} months, and afterwards continues month by "
        "month until one side gives notice.",
    ),
    (
        "The rent is {rent} pounds a month, payable in advance on the first working day. It includes the "
        "service charge for the stairs and the roof, but neither heating nor electricity, which the tenant "
        "pays to the suppliers. A payment that arrives more than seven days late bears interest at three per "
        "cent a year above the base rate.",
        "The tenant pays {rent} pounds each month, before the third day of the month, by bank transfer. Water"
        " and refuse are included. Gas, electricity and any broadband are not; the tenant holds these "
        "contracts. Reminders cost nothing, but after a second late payment within a year the landlord may "
        "ask for rent by standing order.",
    ),
    (
        "Before the keys are handed over, the tenant pays a deposit of {deposit} pounds. The landlord places "
        "it with an approved scheme within thirty days and tells the tenant which one. At the end it is "
        "repaid within {repay} days, less the cost of damage beyond fair wear, of which the landlord gives a "
        "written account with receipts.",
        "A deposit of {deposit} pounds secures the landlord's claims. It is held by an independent scheme and"
        " earns no interest. The landlord returns it within {repay} days of the end of the tenancy. Sums may "
        "be kept back only for unpaid rent and for damage recorded in the final inspection, compared with the"
        " inventory that both have signed.",
    ),
    (
        "The landlord keeps the structure, the outside, the pipes and the heating in repair. The tenant "
        "reports faults as soon as they are noticed. Urgent faults, which are loss of water, heating in "
        "winter, or a door that does not lock, are seen to within {urgent} hours; others within twenty-one "
        "days. If the landlord does not act, the tenant may order the work and deduct its reasonable cost "
        "from the rent after giving a week's warning.",
        "Repairs of the building and its installations are the landlord's duty and expense. Small repairs of "
        "taps, switches and blinds are the tenant's, up to forty pounds each and two hundred pounds a year. "
        "Where the home cannot be used safely, the landlord begins within {urgent} hours of being told. The "
        "tenant gives access on a day's notice, and at once in an emergency.",
    ),
    (
        "{pets} The tenant may keep small animals in cages or tanks without asking. Consent that was given "
        "may be withdrawn only if an animal causes damage or repeated complaints, and then in writing with a "
        "month to find it another place.",
        "On animals the parties have agreed as follows. {pets} This does not concern assistance dogs, which "
        "are always allowed. The tenant makes good any scratches to doors and floors, whichever animal made "
        "them.",
    ),
    (
        "Part of the home may be sublet only with the landlord's written consent, which is not refused "
        "without a reason. The whole home may not be sublet or offered to travellers. Guests may stay up to "
        "six weeks. The tenant remains answerable for the rent and for whatever guests and lodgers do.",
        "The tenant lives in the home personally. A lodger needs the landlord's consent; a reply is due "
        "within fourteen days, and silence counts as consent. Short lets through agencies or websites are a "
        "breach that allows the landlord to end the tenancy after one warning.",
    ),
    (
        "Either side may end the tenancy after the first term by {notice} months' written notice to the end "
        "of a month. During the first term it ends early only by agreement, or if the tenant is moved by an "
        "employer more than fifty miles away and proves it, in which case {notice} months' notice is enough "
        "as well.",
        "Notice is given in writing and takes effect {notice} months after the end of the month in which it "
        "arrives. No notice is possible before the first term is over, unless the home becomes unfit to live "
        "in. An e-mail is sufficient if its receipt is confirmed; a message by telephone is not.",
    ),
    (
        "The rent stays the same during the first term. Later it may be raised once a year by at most "
        "{raise_} per cent, announced three months ahead. The tenant may then leave with one month's notice. "
        "Improvements that save energy may be charged separately, at a twelfth of their yearly saving each "
        "month.",
        "An increase of rent is possible from the second year on, once in twelve months and by no more than "
        "{raise_} per cent. The landlord gives the reason and three comparable rents nearby. If the tenant "
        "objects within a month, a rent officer's figure decides, and until then the old rent is owed.",
    ),
    (
        "At the end the tenant returns the home swept and cleared, with all keys. Walls painted in strong "
        "colours are repainted white. Fixtures that the tenant put in are removed unless the landlord takes "
        "them over at an agreed price. A joint inspection is held in the last week, and both sign what they "
        "find.",
        "When the tenancy ends, the home is handed back clean, in the state of the inventory, allowing for "
        "normal wear. The last reading of every meter is noted. Goods left behind are kept for a month at the"
        " tenant's risk and are then disposed of; any surplus from a sale belongs to the tenant.",
    ),
    (
        "Each side has received a signed copy, the inventory of {rooms} pages, the energy certificate and the"
        " gas safety record. There are no side agreements. If a clause is void, the others remain. Changes "
        "need both signatures. Disputes go first to the mediation service of the borough, which costs each "
        "side sixty pounds, and only then to court.",
        "This document, with an inventory of {rooms} pages, is the whole agreement. Promises made at the "
        "viewing count only if they are written here. Letters are sent to the addresses above until another "
        "is given. The parties try to settle quarrels through the borough's mediation service before they go "
        "to court, except for urgent repairs and unpaid rent.",
    ),
)
PETS = (
    ("One dog or cat is allowed from the start.", "one dog or cat is allowed"),
    ("Dogs and cats need the landlord's consent.", "dogs and cats need consent"),
    ("Dogs are not allowed; one cat is.", "a cat is allowed, dogs are not"),
)

DISPUTE = (
    (
        "Record of a hearing before the housing mediator on {day} {month} {year}. Present were {tenant}, who "
        "rents {home} at {address}, and {landlord}, the owner. The rent is {rent} pounds a month. The tenancy"
        " has lasted {term} months, and until this quarrel neither side had complained about the other.",
        "The mediator heard {tenant} (tenant) and {landlord} (landlord) on {day} {month} {year}. The matter "
        "concerns {home} at {address}, let for {rent} pounds a month. The parties have known each other for "
        "the {term} months of the tenancy and both wish it to continue if the fault is settled.",
    ),
    (
        "The tenant reported {fault} by e-mail and again by letter. Copies of both were shown, and "
        "photographs with dates. The landlord replied after {wait} days, offering to send somebody the "
        "following week. Nobody came, and a second appointment was cancelled on the morning itself. In the "
        "meantime the tenant bought a heater and cleaning materials for {costs} pounds.",
        "According to the file, the complaint is of {fault}. It was first made by telephone, of which there "
        "is no record, and then in writing. From the letter to the first visit {wait} days passed. The tenant"
        " spent {costs} pounds on makeshift measures and on a night in a guest house, for which receipts were"
        " handed in.",
    ),
    (
        "The landlord does not deny the delay, but puts it down to the firm that was engaged, which had lost "
        "two of its staff. It was also said that the tenant had refused access on a Saturday. The tenant "
        "answered that the visit had been announced an hour before, in working hours, and that the agreement "
        "asks for a day's notice.",
        "For the landlord it was argued that the fault was small, that the tenant could have used the other "
        "room, and that rent may not be withheld without warning. The tenant pointed to the clause on urgent "
        "repairs and to two written warnings. The landlord had received both, one of them after some days "
        "because of a holiday.",
    ),
    (
        "A {expert} inspected the home at the mediator's request, in the presence of both. The report finds "
        "that {finding}. It puts the cost of a proper repair at {repair} pounds, and the work at three days, "
        "during which the home can be lived in. It sees no fault in how the tenant used the home.",
        "The report of the {expert}, which both sides accept, says that {finding}. A lasting repair would "
        "cost about {repair} pounds. The report adds that earlier attention would have halved this sum, and "
        "advises that the work be checked again after the first hard winter.",
    ),
    (
        "The tenant had withheld {withheld} pounds of rent over two months. The mediator explained that rent "
        "may be reduced in proportion to the loss of use, but that the tenant bears the risk of reducing it "
        "by too much. Measured by similar cases, a reduction of {percent} per cent for the time between the "
        "letter and the repair would be usual.",
        "On the rent, {withheld} pounds are open. Both were told that a reduction is a right and no penalty: "
        "it depends on how much of the home could be used, and not on whose fault it was. The mediator named "
        "{percent} per cent as a range that courts in the county have confirmed for comparable defects.",
    ),
    (
        "After a break the parties talked without the mediator. They spoke of the garden, of a neighbour who "
        "had moved, and of the winter two years ago when the tenant had cleared the snow from the whole path."
        " When the hearing was resumed, both said that they wished to avoid a court, whose fees would exceed "
        "the sum in dispute.",
        "The discussion was at first heated. The mediator reminded both that statements made here may not be "
        "used in court. The landlord's bookkeeper then set out the payments of the last year, from which it "
        "appeared that one transfer of the tenant had been booked to another account. This was put right at "
        "once, and the tone improved.",
    ),
    (
        "They agreed as follows. The landlord has the repair carried out in full by {due_day} {due_month}, at"
        " the landlord's expense, and announces every visit two days ahead. The tenant pays {settled} pounds "
        "of the withheld rent within ten days; the rest is waived as a reduction. The receipts of {costs} "
        "pounds are refunded with the next rent.",
        "The settlement reads: the repair is completed by {due_day} {due_month} and paid for by the landlord."
        " Of the rent withheld, the tenant owes {settled} pounds, due within ten days, and no interest. The "
        "landlord refunds the {costs} pounds spent. Neither side gives notice because of this dispute for the"
        " next twelve months.",
    ),
    (
        "If the date is missed, the rent is reduced by {percent} per cent from that day on until the work is "
        "finished, without further warning. If the tenant does not give access on an announced day, the date "
        "is put back by a week. Both sides confirm that no other claims from this matter remain.",
        "Should the repair not be finished in time, the tenant may reduce the rent by {percent} per cent "
        "until it is, and may order the work after a further fortnight. Access that is refused twice without "
        "a reason releases the landlord from the date. With this the matter is closed between the parties.",
    ),
    (
        "Each side bears half of the mediator's fee of one hundred and twenty pounds. The record was read "
        "aloud, and corrected in two places: the floor of the home, and the spelling of a street. Both have "
        "signed it and received a copy. It may be enforced like a judgment if it is lodged with the county "
        "court within six months.",
        "The fee of one hundred and twenty pounds is shared equally. Copies go to both parties, and on "
        "request to the deposit scheme. The mediator will ask by letter, six weeks after the agreed date, "
        "whether the work was done, and closes the file if no answer comes. The record was approved and "
        "signed by all present.",
    ),
)


def facts(pick: random.Random) -> dict[str, object]:
    """The facts of a document."""
    home, address = pick.choice(HOMES)
    fault, expert, finding = pick.choice(FAULTS)
    pets, pets_short = pick.choice(PETS)
    rent = pick.randrange(52, 140) * 10
    withheld = round(rent * pick.choice((0.4, 0.5, 0.6)))
    return {
        "landlord": pick.choice(LANDLORDS),
        "tenant": pick.choice(TENANTS),
        "home": home,
        "address": address,
        "day": pick.randrange(1, 28),
        "month": pick.choice(MONTHS),
        "year": pick.randrange(2021, 2026),
        "term": pick.choice((6, 12, 18, 24, 36)),
        "rent": rent,
        "deposit": rent * pick.choice((1, 2)),
        "repay": pick.choice((14, 21, 30)),
        "urgent": pick.choice((24, 48, 72)),
        "pets": pets,
        "pets_short": pets_short,
        "notice": pick.choice(("two", "three", "four")),
        "raise_": pick.choice((3, 4, 5, 6)),
        "rooms": pick.randrange(3, 9),
        "fault": fault,
        "expert": expert,
        "finding": finding,
        "wait": pick.randrange(9, 40),
        "costs": pick.randrange(6, 24) * 10,
        "repair": pick.randrange(5, 30) * 100,
        "withheld": withheld,
        "settled": round(withheld * pick.choice((0.25, 0.5))),
        "percent": pick.choice((10, 15, 20, 25)),
        "due_day": pick.randrange(5, 28),
        "due_month": pick.choice(MONTHS),
    }


SUMMARIES: Mapping[str, Sequence[str]] = {
    "agreement": (
        "{landlord} lets {home} at {address} to {tenant} from {day} {month} {year}, for {term} months and "
        "then from month to month. The rent is {rent} pounds a month without energy, the deposit {deposit} "
        "pounds, repaid within {repay} days. Urgent repairs begin within {urgent} hours. Notice is {notice} "
        "months, after the first term. From the second year the rent may rise by at most {raise_} per cent a "
        "year. Of animals, {pets_short}. Quarrels go to mediation first.",
    ),
    "dispute": (
        "{tenant} and {landlord} settled a dispute about {fault} at {address} before the housing mediator on "
        "{day} {month} {year}. The landlord first acted after {wait} days. The {expert} found that {finding}."
        " The landlord pays for the repair, about {repair} pounds, by {due_day} {due_month}, and refunds "
        "{costs} pounds. The tenant pays {settled} of {withheld} pounds of withheld rent within ten days. If "
        "the date is missed, the rent falls by {percent} per cent.",
    ),
}


def compose(number: int) -> dict[str, object]:
    """A demonstration: the document, and its summary."""
    pick = random.Random(f"tenancy {number}")
    values = facts(pick)
    kind, clauses = ("agreement", AGREEMENT) if number % 2 == 0 else ("dispute", DISPUTE)
    numbered = [f"{n}. {pick.choice(variants).format(**values)}" for n, variants in enumerate(clauses, start=1)]
    split = "test" if number < TEST else "validation" if number < TEST + VALIDATION else "train"
    return {
        "prompt": ASK + "\n".join(numbered),
        "completion": pick.choice(SUMMARIES[kind]).format(**values),
        "split": split,
        "tags": [kind],
        "source": "tenancy-summaries",
    }


def main() -> None:
    """Write the file beside this one."""
    rows = [compose(number) for number in range(DOCUMENTS)]
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    Path(__file__).with_name("demonstrations.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
