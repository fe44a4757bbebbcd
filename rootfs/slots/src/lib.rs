//! byre-slots
