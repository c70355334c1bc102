//! What follows a connection: a path that stopped answering.
//!
//! ```text
//! doubted   the servers are told where we are now: our own NAT may have forgotten them too, and then no call gets in
//! suspect   a call is placed, through the server, beside the path, which stays in use until the call has found another
//! lost      there is no path; payload waits for the call
//! ```

use super::{Call, Peer};
use crate::proto::Instant;
use crate::proto::context::Local;

impl Peer {
    /// The path in use did not answer for a while.
    pub(super) fn on_suspect(&mut self, now: Instant, local: &mut Local) {
        if !self.config.calls.may_call() || local.connected_server().is_none() {
            // The peer can call, or the path is lost and everything else is tried.
            return;
        }
        let idle = match &self.call {
            Call::Idle | Call::Resting { .. } => true,
            // What it found is what is suspect now.
            Call::Punching(punching) => punching.punch.is_stopped(),
            Call::Knocking { .. } | Call::Surveying { .. } | Call::Calling(_) => false,
        };
        if idle {
            local.step(&self.config.name, "the path is silent: calls beside it".to_owned());
            self.end_call(local, None);
            self.call_began = None;
            self.absent = false;
            self.begin_call(now, local);
        }
    }
}
