//! Enhanced fan-out over the wire: whole workers that subscribe, while records flow and whatever happens to their subscriptions.
//!
//! Each test ends with the same questions: was every record delivered, in order and once, and were the limits of SubscribeToShard
//! kept. See [`scene::Scene::finish`].

mod broken;
mod calls;
mod consumers;
mod errors;
mod expiry;
mod handoff;
mod paused;
mod reshard;
mod scene;
mod slow;
