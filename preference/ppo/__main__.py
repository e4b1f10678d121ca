"""`python -m preference.ppo`"""

from preference.ppo import main

main()
