"""The language of messages: requests, whole replies and streams, read and written."""
