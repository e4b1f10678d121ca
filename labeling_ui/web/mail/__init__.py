"""E-mail to raters who asked for it: the server's settings, what is sent and when, and the API."""
