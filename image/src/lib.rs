//! byre-image
