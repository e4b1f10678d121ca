from labeling_ui.store.store import open_store as open_store
from tiebreak.data.reading import read_preferences as read_preferences
from tiebreak.library import load_policy as load_policy
from tiebreak.library import load_reward_model as load_reward_model
from tiebreak.library import sample as sample
from tiebreak.library import score as score

__version__: str
