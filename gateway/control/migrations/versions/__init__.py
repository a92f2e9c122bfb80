"""One module for each revision of the control plane's schema; a published one is never changed."""
