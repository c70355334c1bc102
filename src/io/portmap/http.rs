//! As much HTTP as a router's UPnP needs, bounded: one request a connection, over TCP to an address that we chose.
//!
//! igd-next's own client takes an answer of any length and any nesting, follows names, and never gives up; so igd-next writes
//! and reads the SOAP, and this carries it ([`Bounded`]). An answer that is longer than 64 KiB or takes longer than 3 s is none;
//! nor is SOAP with more than 128 tags (its XML reader calls itself once per level) or any `<!` (entities).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use igd_next::RequestError;
use igd_next::aio::Provider;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(3);
/// A router's description is 3 to 10 KiB.
const MAX_LEN: usize = 64 << 10;
/// The longest SOAP answer that we ask for has some 20.
const MAX_TAGS: usize = 128;

/// Carries igd-next's SOAP requests.
#[derive(Clone, Debug)]
pub struct Bounded;

impl Provider for Bounded {
    // By hand what async-trait would write: one function is not worth the macro.
    fn send_async<'url, 'action, 'body, 'out>(
        url: &'url str,
        action: &'action str,
        body: &'body str,
    ) -> Pin<Box<dyn Future<Output = Result<String, RequestError>> + Send + 'out>>
    where
        'url: 'out,
        'action: 'out,
        'body: 'out,
    {
        Box::pin(async move {
            let (address, path) = split_url(url).ok_or_else(|| invalid("not a router's address"))?;
            let head = format!("SOAPAction: {action}\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n");
            let text = request(address, "POST", path, &head, body).await?;
            if is_plain(&text) { Ok(text) } else { Err(invalid("too many tags, or a document type").into()) }
        })
    }
}

/// Fetches a document.
pub async fn fetch(address: SocketAddr, path: &str) -> io::Result<String> {
    request(address, "GET", path, "", "").await
}

/// `http://ADDRESS[:PORT]/PATH`, where the address is one and not a name, into address and path.
pub fn split_url(url: &str) -> Option<(SocketAddr, &str)> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let address = authority.parse().or_else(|_| authority.parse().map(|ip| SocketAddr::new(ip, 80))).ok()?;
    is_path(path).then_some((address, path))
}

/// Whether `path` can stand in a request line as it is.
pub fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= 512 && path.bytes().all(|byte| byte.is_ascii_graphic())
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn request(address: SocketAddr, method: &str, path: &str, head: &str, body: &str) -> io::Result<String> {
    if !is_path(path) {
        return Err(invalid("not a path"));
    }
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: p2ptund UPnP/1.1\r\nConnection: close\r\n\
         {head}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        loop {
            // Some routers do not close although asked to; so the length that they told ends the answer too.
            if let Some(body) = whole_body(&answer)? {
                return Ok(body);
            }
            if answer.len() > MAX_LEN {
                return Err(invalid("the answer is too long"));
            }
            let mut part = [0; 4096];
            match stream.read(&mut part).await? {
                0 => return body_at_end(&answer),
                len => answer.extend_from_slice(&part[..len]),
            }
        }
    };
    let body =
        tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    String::from_utf8(body).map_err(|_| invalid("not UTF-8"))
}

/// Whether an XML reader that calls itself for each level is safe with this.
fn is_plain(text: &str) -> bool {
    !text.contains("<!") && text.matches('<').count() <= MAX_TAGS
}

/// Where the body starts, how long it is to be (if told), and whether it comes in chunks.
struct Head {
    body: usize,
    length: Option<usize>,
    chunked: bool,
}

fn head(answer: &[u8]) -> io::Result<Option<Head>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = str::from_utf8(&answer[..end]).map_err(|_| invalid("not a header"))?;
    let mut lines = text.split("\r\n");
    if !lines.next().is_some_and(|status| status.starts_with("HTTP/1.")) {
        return Err(invalid("not HTTP"));
    }
    // The status does not matter: a SOAP fault comes with 500, and its body says more.
    let mut head = Head { body: end + 4, length: None, chunked: false };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            let length: usize = value.trim().parse().map_err(|_| invalid("no length"))?;
            if length > MAX_LEN {
                return Err(invalid("the answer is too long"));
            }
            head.length = Some(length);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            head.chunked = value.trim().eq_ignore_ascii_case("chunked");
        }
    }
    Ok(Some(head))
}

/// The body, once all of it is there; `None` where more must come.
fn whole_body(answer: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let Some(head) = head(answer)? else { return Ok(None) };
    let body = &answer[head.body..];
    if head.chunked {
        return unchunk(body);
    }
    Ok(head.length.and_then(|length| body.get(..length)).map(<[u8]>::to_vec))
}

/// The body, when the connection has ended.
fn body_at_end(answer: &[u8]) -> io::Result<Vec<u8>> {
    match head(answer)? {
        Some(Head { body, length: None, chunked: false }) => Ok(answer[body..].to_vec()),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

/// `SIZE-IN-HEX[;…]CRLF BYTES CRLF …` until a size of 0 (RFC 9112 section 7.1).
fn unchunk(mut rest: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let line = str::from_utf8(&rest[..end]).map_err(|_| invalid("no chunk"))?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| invalid("no chunk"))?;
        if size > MAX_LEN {
            return Err(invalid("the answer is too long"));
        }
        if size == 0 {
            return Ok(Some(body));
        }
        let start = end + 2;
        let (Some(chunk), Some(next)) = (rest.get(start..start + size), rest.get(start + size + 2..)) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A router that gives one answer and then, or not, closes.
    async fn ask(answer: Vec<u8>, closes: bool) -> io::Result<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
            if !closes {
                let _ = stream.read(&mut request).await;
            }
        });
        fetch(address, "/").await
    }

    #[tokio::test]
    async fn reads_an_answer_by_length_by_chunks_or_to_the_end() {
        let by_length = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<a/>".to_vec();
        assert_eq!(ask(by_length, false).await.expect("an answer"), "<a/>");
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\n<a\r\n2\r\n/>\r\n0\r\n\r\n".to_vec();
        assert_eq!(ask(chunks, false).await.expect("an answer"), "<a/>");
        let to_the_end = b"HTTP/1.0 500 Fault\r\n\r\n<a/>".to_vec();
        assert_eq!(ask(to_the_end, true).await.expect("an answer"), "<a/>");
    }

    #[tokio::test]
    async fn refuses_what_is_too_long_cut_off_or_no_http() {
        let body = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
        for bad in [
            body(&"x".repeat(MAX_LEN + 1)),
            [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 2 * MAX_LEN]].concat(),
            [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 2 * MAX_LEN]].concat(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort".to_vec(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe".to_vec(),
            b"SSH-2.0\r\n\r\n".to_vec(),
            Vec::new(),
        ] {
            assert!(ask(bad.clone(), true).await.is_err(), "{:?}", String::from_utf8_lossy(&bad[..bad.len().min(80)]));
        }
    }

    #[test]
    fn only_an_address_and_a_plain_path_make_a_url() {
        let split = |url| split_url(url).map(|(address, path)| (address.to_string(), path.to_owned()));
        assert_eq!(split("http://192.0.2.1:5000/a?b"), Some(("192.0.2.1:5000".to_owned(), "/a?b".to_owned())));
        assert_eq!(split("http://192.0.2.1"), Some(("192.0.2.1:80".to_owned(), "/".to_owned())));
        for bad in ["https://192.0.2.1/", "http://router/", "http://1.2.3.4/a b", "http://1.2.3.4/\r\nX: y", "", "/"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}
