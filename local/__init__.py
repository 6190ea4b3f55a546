"""The local stack: a real PostgreSQL and an SQS emulator, both on 127.0.0.1, for `make demo` and for the tests."""
