"""Sentences with invented personal data, for measuring the detector: in German and English, as people write tickets.

`[KIND:value]` marks what must be found; everything else must be left alone. Frames are filled with every value of their
kind in turn. Values are of reserved ranges, of published examples, or made with their check digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

VALUES: dict[str, tuple[str, ...]] = {
    "EMAIL": (
        "anna.weber@example.org", "j.o'neil+shop@mail.example.co.uk", "SUPPORT-77@EXAMPLE.COM", "k_lang@uni-xy.example.de",
        "max(at)example.de", "müller@exämple.de", "t.r@sub.example.museum",
    ),
    "PHONE": (
        "+49 30 23125 014", "030 23125 678", "0171 2345678", "(0171) 234 56 78", "+44 20 7946 0958", "020 7946 0123",
        "+1 212-555-0142", "0049 171 2345678", "0711/2345678",
    ),
    "IBAN": (
        "DE89 3704 0044 0532 0130 00", "DE89370400440532013000", "GB29 NWBK 6016 1331 9268 19",
        "at611904300234573201", "CH93 0076 2011 6238 5295 7",
    ),
    "CARD": ("4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "4012888888881881"),
    "IP": ("192.0.2.17", "203.0.113.254", "2001:db8:85a3::8a2e:370:7334", "10.11.12.13"),
    "MAC": ("00:00:5E:00:53:AF", "00-00-5e-00-53-01"),
    "SECRET": (
        "ghp_a8Jd93kLm20Qw7ErTy56UiOp1ZxCv", "AKIAIOSFODNN7EXAMPLE", "sk-proj-Zk29fLq81Bv0Tn4cYx73",
        "hf_QwErTyUiOpAsDfGhJkLzXcVb",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "xoxb-2048-abcdefghij",
    ),
    "PASSWORD": ("hunter22x", "Sommer2024!", "x9#kQ-77", "b4ckup_k3y"),
    "URL": (
        "https://shop.example.org/reset?token=8f3a2c1b9d",
        "https://example.com/cb?state=1&access_token=a1b2c3",
        
        "postgres://app:s3cr3t@db.example.org:5432/app", "http://user:pass77@intern.example.net/status",
    ),
    "BIRTH_DATE": ("03.11.1978", "1985-02-28", "7. Mai 1990", "12/25/1969", "March 4, 1991", "4th of July 1982"),
    "TAX_DE": ("86095742719", "47036892816"),
    "SOCIAL_DE": ("65170839J003", "15070649C103"),
    "SSN": ("536-22-8145", "219 09 8888"),
    "NINO": ("AB123456C", "AB 12 34 56 C"),
    "ID_CARD": ("L01X00T47", "C01X00T47"),
    "PLATE_DE": ("B-XY 4711", "M AB 123", "HH-AB 12E"),
    "PLATE_UK": ("AB12 CDE", "BD51 SMR"),
    "ADDRESS_DE": (
        "Beispielstraße 12, 12345 Musterstadt", "Am Alten Weg 7b", "Lindenallee 103", "Bahnhofstr. 4, 50667 Köln",
    ),
    "ADDRESS_EN": (
        "12 High Street", "221B Baker Street", "1600 Amphitheatre Parkway, Mountain View, CA 94043", "7 Mill Lane, Flat 3",
    ),
}  # fmt: skip
KIND_OF = {
    "PASSWORD": "SECRET", "TAX_DE": "NATIONAL_ID", "SOCIAL_DE": "NATIONAL_ID", "SSN": "NATIONAL_ID", "NINO": "NATIONAL_ID",
    "ID_CARD": "NATIONAL_ID", "PLATE_DE": "PLATE", "PLATE_UK": "PLATE", "ADDRESS_DE": "ADDRESS", "ADDRESS_EN": "ADDRESS",
}  # fmt: skip

FRAMES = """
Bitte antwortet an {EMAIL}, danke!
my mail is {EMAIL} but nothing arrives
From: {EMAIL} Subject: order late
hab schon 3x an {EMAIL} geschrieben
send it to {EMAIL}; cc {EMAIL}
Ruft mich bitte unter {PHONE} an.
call me back on {PHONE} after 5
tel: {PHONE}
meine handynr ist {PHONE} falls ihr fragen habt
You can reach my wife at {PHONE}.
Rückruf erbeten, {PHONE}, Danke
Bitte überweist die 12,50 € auf {IBAN}.
my iban {IBAN} was wrong in the form
Konto {IBAN} bei der Sparkasse
I paid with card {CARD} and was charged twice
Kreditkarte {CARD} läuft ab
{CARD} exp 04/29
The server at {IP} does not answer.
Login von {IP} um 14:30
ping {IP} -> timeout
Router {MAC} hängt sich auf
device {MAC} keeps dropping
export KEY={SECRET}
I accidentally pasted {SECRET} into the chat
curl -H "Authorization: Bearer {SECRET}"
my password is {PASSWORD} and it fails
Passwort: {PASSWORD}
password={PASSWORD}
das kennwort lautet {PASSWORD} bitte ändern
The link {URL} has expired
Der Link {URL} geht nicht
DSN is {URL}
Geburtsdatum: {BIRTH_DATE}
I was born on {BIRTH_DATE} in Leeds.
DOB {BIRTH_DATE}
geboren am {BIRTH_DATE}, verheiratet
Meine Steuer-ID ist {TAX_DE}.
Sozialversicherungsnummer {SOCIAL_DE} liegt bei
my ssn is {SSN}
National insurance {NINO}, please check
Personalausweis {ID_CARD} liegt als Kopie bei
Mein Kennzeichen ist {PLATE_DE}, der Wagen steht vor der Tür.
Das Auto mit dem Nummernschild {PLATE_DE} blockiert die Einfahrt
my number plate {PLATE_UK} was read wrongly
Ich wohne in der {ADDRESS_DE}.
Lieferadresse: {ADDRESS_DE}
bitte an {ADDRESS_DE} schicken
I live at {ADDRESS_EN}.
Ship it to {ADDRESS_EN} instead
delivery to {ADDRESS_EN} failed
user = "{EMAIL}"  # TODO
{{"email": "{EMAIL}", "ip": "{IP}"}}
Kunde {EMAIL} / {PHONE} / {IBAN}
ERIKA SCHREIBT VON {EMAIL} UND WOHNT {ADDRESS_DE}
contact: {PHONE} or {EMAIL} (both work)
hallo, ich habs nochmal versucht mit {EMAIL}... geht nciht
plz cal {PHONE} asap!!!
email={EMAIL}&next=1
const owner = '{EMAIL}';
<a href="mailto:{EMAIL}">Mail</a>
**Telefon:** {PHONE}
| Kunde | {PHONE} | offen |
Meine Nummer: {PHONE}. Meine Mail: {EMAIL}.
fax {PHONE}, mobile {PHONE}
Betrag an {IBAN}, Verwendungszweck 2024-17
"iban": "{IBAN}",
card no. {CARD}, cvc on request
meine karte ({CARD}) wurde gesperrt
host={IP} port=5432
X-Forwarded-For: {IP}
token: {SECRET}
git clone https://{SECRET}@git.example.org/a.git
pwd: {PASSWORD}
WLAN-Passwort ist {PASSWORD}
api_key="{SECRET}"
see {URL}, then log in
Patient, geb. {BIRTH_DATE}, klagt über Husten
her date of birth is {BIRTH_DATE}
geburtstag {BIRTH_DATE}
SSN: {SSN} (old card)
Reisepass {ID_CARD}
kfz {PLATE_DE}
Registration {PLATE_UK} is my van
Adresse: {ADDRESS_DE}
my address is {ADDRESS_EN}, second floor
"""

PLAIN = """
Meine Bestellung 4711-0815 ist nicht angekommen.
Order A-100234 has 3 items for 129.99 EUR.
The pump moves 1200 litres an hour at 24 V.
pH 5.8 to 6.2, EC 1.8 mS/cm, 22 °C.
Version 3.11.7 fails, 3.12 works.
Am 12.05.2024 um 14:30 habe ich bestellt.
The meeting is on March 4, 2025 in room 12.
Wir haben 12345 Pflanzen im Gewächshaus.
Use 10 ml of A and 20 ml of B per 10 litres.
Der Schlüssel liegt unter der Matte.
The password is wrong, it says.
Mein Passwort ist falsch.
I need a new password: the old one is not accepted.
Please reset my password
Ich suche den Weg zum Bahnhof.
Der Platz reicht nicht für 40 Töpfe.
Street lights are out again.
for i in range(1000): total += i
SELECT count(*) FROM orders WHERE id = 1234567;
def send(mail): return mail @ matrix
See https://example.org/help/returns for how it works.
https://example.org/a?page=2&sort=price
ISBN 978-3-16-148410-0
Chapter 10.1.2.3.4 of the manual
Die Nummer 1234567890123 steht auf dem Karton.
Tracking 00340434161094042557 says delivered.
The part number is MB-XY 12-B.
Ticket #99812 since 3 weeks
CO2 at 800 ppm, 18/6 light.
error 0x80070005 at 0x7fff5fbff8a0
sha256 38c1ac9d4de0afb2961aa5bae7413121
2024-01-15T10:00:00Z worker started
Das Gerät hat 4 Anschlüsse und wiegt 12 kg.
call me maybe
The temperature rose by 5 to 10 degrees per hour.
Wie viel Dünger brauche ich für 50 l?
1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
Seite 12, Absatz 3, Satz 2
H2O, N-P-K 20 20 20 und Ca
In 2019 I moved from growing in soil to growing in water.
An Anna: bitte beim Nachbarn abgeben
We open 9-17, Mon-Fri, closed 24.12.-26.12.
Room A 12 is free.
rate 4.111 / 1.111 = 3.7
:: is the scope operator
std::vector<int> v(10);
Die Rechnung R-2024-000123 über 1.234,56 EUR
Born to be wild is a song of 1968.
I was born in a small town.
token ring networks are dated
"""


@dataclass(frozen=True)
class Sentence:
    """A sentence, and the kinds of personal data in it by (start, end)."""

    text: str
    spans: dict[tuple[int, int], str]


def sentences() -> Iterator[Sentence]:
    """All of them: those with personal data, then those without."""
    for frame in FRAMES.strip().splitlines():
        slots = re.findall(r"(?<!\{)\{(\w+)\}", frame)
        for turn in range(max(len(VALUES[slot]) for slot in slots)):
            yield _filled(frame, turn)
    for line in PLAIN.strip().splitlines():
        yield Sentence(line, {})


def _filled(frame: str, turn: int) -> Sentence:
    spans: dict[tuple[int, int], str] = {}
    text = ""
    for number, piece in enumerate(re.split(r"(?<!\{)\{(\w+)\}", frame)):
        if number % 2:
            values = VALUES[piece]
            value = values[(turn + number // 2) % len(values)]
            spans[len(text), len(text) + len(value)] = KIND_OF.get(piece, piece)
            text += value
        else:
            text += piece.replace("{{", "{").replace("}}", "}")
    return Sentence(text, spans)
