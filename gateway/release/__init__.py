"""Release: the caller's end of an exchange."""
