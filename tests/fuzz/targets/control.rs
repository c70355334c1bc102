//! A line of the control socket, either way.

use p2ptund::control::{Pong, Request, Response};
use p2ptund::proto::snapshot::Snapshot;

pub fn run(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let encoded = serde_json::to_vec(&request).expect("a request has no map with odd keys");
        assert_eq!(serde_json::from_slice::<Request>(&encoded).ok(), Some(request));
    }
    if let Ok(response) = serde_json::from_slice::<Response>(data) {
        let encoded = serde_json::to_vec(&response).expect("a value came from JSON");
        assert!(serde_json::from_slice::<Response>(&encoded).is_ok());
        if let Response::Ok(value) = response {
            // What `status` and `ping` make of an answer.
            let _ = serde_json::from_value::<Snapshot>(value.clone());
            let _ = serde_json::from_value::<Pong>(value);
        }
    }
}
