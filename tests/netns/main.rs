//! The shipped binary, in network namespaces, behind real NATs, by the outward contract alone. Needs root.

#[path = "../lab/enter.rs"]
mod enter;
mod lab;
mod lab_itself;
