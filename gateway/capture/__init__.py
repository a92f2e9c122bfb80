"""Capture: requests and replies of chosen keys as files, with their content, for whoever looks for a fault.

It is off unless the operator names a folder and keys. What is captured is redacted and bounded, stands in
files that only the gateway's user can read, and nowhere else: not in a span, a log or an error. A bill says
that there is a capture, and where; a request that is not captured pays one look at an attribute.
"""
