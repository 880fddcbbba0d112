//! The port to the service: one suite for all that implement it, and what many subscriptions on few connections do.

mod conformance;
mod connections;
mod model;
mod sdk;
