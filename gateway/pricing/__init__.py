"""Price: usage x dated rate card -> exact charge lines."""
