"""The language of chat completions: requests, whole replies and streams, read and written."""
