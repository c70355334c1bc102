//! As much HTTP as a router's UPnP needs, bounded: one request a connection, over TCP to an address that we chose.
//!
//! igd-next's own client takes an answer of any length and any nesting, follows names, and never gives up; so igd-next writes
//! and reads the SOAP, and this carries it ([`Bounded`]). An answer that is longer than 64 KiB or takes longer than 20 s is none;
//! nor is SOAP with more than 128 tags (its XML reader calls itself once per level) or any `<!` (entities).
//!
//! igd-next names the service WANIPConnection:1 whatever it talks to, and a router may refuse a service that it has not; so a
//! URL for [`Bounded`] ends in `#SERVICE`, the one to name instead.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use igd_next::RequestError;
use igd_next::aio::Provider;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::answers::{MAX_LEN, Service, body_at_end, invalid, is_path, is_plain, split_url, whole_body};

/// Routers with a slow processor were seen to take 10 s for one mapping. Nobody waits for them meanwhile.
const TIMEOUT: Duration = Duration::from_secs(20);

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
            let (url, service) = url.split_once('#').unwrap_or((url, Service::WanIp1.name()));
            let (address, path) = split_url(url).ok_or_else(|| invalid("not a router's address"))?;
            let name = |text: &str| text.replace(Service::WanIp1.name(), service);
            let head = format!("SOAPAction: {}\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n", name(action));
            let text = request(address, "POST", path, &head, &name(body)).await?;
            if is_plain(&text) { Ok(text) } else { Err(invalid("too many tags, or a document type").into()) }
        })
    }
}

/// Fetches a document.
pub async fn fetch(address: SocketAddr, path: &str) -> io::Result<String> {
    request(address, "GET", path, "", "").await
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
        stream.set_nodelay(true)?;
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
}
