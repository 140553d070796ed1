//! Automated rollover with one peer: pure, `(now, event)` in, actions out.

pub mod message;
