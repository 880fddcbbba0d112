//! The DynamoDB lease table over the wire: the real SDK against servers on the loopback interface.

mod calls;
mod items;
mod local;
mod provision;
mod scripted;
mod transactions;
