"""`python -m preference.ppo`"""

from preference.ppo.train import main

main()
