"""The label store: the transactions of raters and leads, in folders by what they are about."""
