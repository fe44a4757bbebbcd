//! byre-facts
