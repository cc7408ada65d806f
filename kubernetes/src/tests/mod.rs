//! The flows against an API server that is a table of objects with versions.

mod authority;
mod certificates;
mod fake;

pub(crate) use fake::names;
