//! Proxies that open no tunnel. Then nothing was sent, and the proxy has seen no token.

use dispatcher::app::Proxy;

use super::*;

/// A host that only a proxy could reach, so that a call that passes the proxy by fails in another way.
const WECHAT: &str = "https://no-such-host.invalid";

fn via(proxy: &str) -> Client {
    let proxy = Some(Proxy::parse(proxy).unwrap());
    Client::new(Arc::new(App { proxy, ..app(WECHAT) }), None).unwrap()
}

#[tokio::test]
async fn proxy_that_opens_no_tunnel_means_that_nothing_was_sent() {
    let answer = |status: &str| Habit::Answer(http(status, "CANARY"));
    for (habit, cause) in [
        (answer("407 Proxy Authentication Required"), Cause::ProxyAuth),
        (answer("401 Unauthorized"), Cause::ProxyTunnel),
        (answer("403 Forbidden"), Cause::ProxyTunnel),
        (answer("502 Bad Gateway"), Cause::ProxyTunnel),
        (Habit::Answer("this is not HTTP\r\n\r\n".into()), Cause::ProxyTunnel),
        (Habit::Cut(String::new()), Cause::ProxyTunnel),
        (Habit::Cut("HTTP/1.1 200 ".into()), Cause::ProxyTunnel),
        (Habit::Hang, Cause::ConnectTimeout),
        // A tunnel that ends at once, or answers in plain text: the TLS handshake fails.
        (Habit::Cut("HTTP/1.1 200 OK\r\n\r\n".into()), Cause::Connect),
    ] {
        let proxy = Server::start(habit).await;
        let client = via(&proxy.url.replace("http://", "http://user:CANARY-p%40ss@"));
        let reply = client.send(Delivery::FormId, TOKEN, b"{}".to_vec()).await;
        assert_eq!(reply, Reply::NotSent(cause));
        let fetched = client.fetch_token(false).await.unwrap_err();
        assert_eq!(fetched, TokenError::Transient(Trouble::WeChat(cause)));
        assert!(!format!("{reply:?} {fetched} {fetched:?} {:?}", client.app()).contains("CANARY"), "{fetched:?}");
        for request in proxy.requests() {
            let head = "CONNECT no-such-host.invalid:443 HTTP/1.1\r\n";
            assert!(request.starts_with(head) && request.lines().count() == 4, "{request}");
            // user:CANARY-p@ss
            let shown = "Proxy-Authorization: Basic dXNlcjpDQU5BUlktcEBzcw==";
            assert!(request.contains(shown), "{request}");
        }
        assert!(!proxy.requests().is_empty());
    }
}

#[tokio::test]
async fn proxy_that_is_away_means_that_nothing_was_sent() {
    let client = via(&format!("http://127.0.0.1:{}", testing::free_port()));
    let reply = client.send(Delivery::FormId, TOKEN, b"{}".to_vec()).await;
    assert_eq!(reply, Reply::NotSent(Cause::ProxyConnect));
    let client = via("http://no-such-proxy.invalid:3128");
    let reply = client.send(Delivery::FormId, TOKEN, b"{}".to_vec()).await;
    assert!(matches!(reply, Reply::NotSent(Cause::ProxyConnect | Cause::ConnectTimeout)), "{reply:?}");
}
