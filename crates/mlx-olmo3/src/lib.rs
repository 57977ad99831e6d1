//! OLMo 3.
