//! A router's HTTP answer, read as it comes in, a piece at a time, and what is made of a description in it.

use std::net::SocketAddr;

use p2ptund::io::portmap::answers::{MAX_LEN, body_at_end, control_of, is_path, whole_body};

pub fn run(data: &[u8]) {
    let whole = whole_body(data);
    // What was whole stays so: whoever sends a little more changes nothing.
    for cut in [data.len() / 2, data.len().saturating_sub(1)] {
        if let Ok(Some(body)) = whole_body(&data[..cut]) {
            assert!(matches!(&whole, Ok(Some(later)) if *later == body));
        }
    }
    let ended = body_at_end(data).ok();
    for body in whole.ok().flatten().into_iter().chain(ended) {
        assert!(body.len() <= data.len().max(MAX_LEN));
        let location = SocketAddr::from(([192, 0, 2, 1], 5000));
        let Ok(description) = String::from_utf8(body) else { continue };
        if let Some(control) = control_of(&description, location) {
            assert!(is_path(&control.path), "it can stand in a request: {}", control.path);
        }
    }
}
