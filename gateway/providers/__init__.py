"""3 call: the places that answer, as data, and the ways to reach them."""
