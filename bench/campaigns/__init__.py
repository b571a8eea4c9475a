"""Things that go wrong, many times over: each campaign gives cases, and what became of them."""
