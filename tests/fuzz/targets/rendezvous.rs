//! The inside of a MESSAGE_CONTROL datagram.

use p2ptund::proto::rendezvous::{Control, MAX_PASSED, receiver};

pub fn run(data: &[u8]) {
    assert_eq!(receiver(data).is_some(), data.len() >= 12);
    let Some(control) = Control::parse(data) else { return };
    let encoded = control.encode();
    match &control {
        Control::Forward { passed, .. } | Control::Deliver { passed, .. } => {
            assert!(passed.len() <= MAX_PASSED);
            assert_eq!(encoded, data, "there is one way to write it");
        }
        Control::Absent { .. } => assert!(data.starts_with(&encoded)),
    }
    assert_eq!(Control::parse(&encoded), Some(control));
}
