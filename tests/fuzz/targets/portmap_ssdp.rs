//! A router's answer to a search, and its NOTIFY.

use p2ptund::io::portmap::answers::{Notice, boot_id, header, is_path, notice, split_url};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Some((address, path)) = header(&text, "location").and_then(split_url) {
        assert!(is_path(path), "it can stand in a request: {path}");
        assert_eq!(split_url(&format!("http://{address}{path}")), Some((address, path)));
    }
    if let Notice::Alive(told) = notice(&text) {
        assert_eq!(told, boot_id(&text));
    }
}
