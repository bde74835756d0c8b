//! The control socket and its client, and the admin listener, over real sockets and a real journal.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::client::{Client, ClientError};
use super::{REQUESTS_MAX, ReloadRefused, ReloadReport, Request, server};
use crate::proto::stage::Stage;
use crate::status::testing::{Scratch, TestNode};

struct World {
    node: TestNode,
    client: Client,
    socket: PathBuf,
    requests: mpsc::Receiver<Request>,
}

fn world() -> World {
    let node = TestNode::new();
    let socket = node.scratch.path().join("run/control.sock");
    let (sender, requests) = mpsc::channel(REQUESTS_MAX);
    tokio::spawn(server::serve(server::bind(&socket).unwrap(), node.observed.clone(), sender));
    World { client: Client::new(&socket), node, socket, requests }
}

#[tokio::test]
async fn status_comes_through_the_socket() {
    let world = world();
    let status = world.client.status().await.unwrap();
    assert_eq!((status.v, status.nodes[0].name.as_str(), status.nodes.len()), (1, "agg-a", 1));
    let mode = std::fs::metadata(&world.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
}

#[tokio::test]
async fn health_follows_stage_sockets_and_journal() {
    let world = world();
    let ask = async |path| world.client.get(path).await.unwrap().0;
    for path in ["/livez", "/healthz", "/readyz", "/active", "/metrics"] {
        assert_eq!(ask(path).await, StatusCode::OK, "{path}");
    }
    world.node.listening.send_replace(false);
    assert_eq!(ask("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask("/active").await, StatusCode::OK);
    world.node.stage.send_replace(Stage::Quiescing);
    assert_eq!(ask("/active").await, StatusCode::SERVICE_UNAVAILABLE);
    let (_, body) = world.client.get("/readyz").await.unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(body.contains("FAIL stage: quiescing\n") && body.contains("ok   journal: writing\n"), "{body}");
    assert_eq!(ask("/livez").await, StatusCode::OK);
    assert_eq!(ask("/nothing").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn faults_are_shown_as_the_daemon_says_them() {
    let world = world();
    world.node.faults.send_replace(vec!["input net ended: it panicked".into()]);
    assert_eq!(world.client.status().await.unwrap().nodes[0].faults, ["input net ended: it panicked"]);
}

#[tokio::test]
async fn a_reload_waits_for_its_outcome() {
    let mut world = world();
    tokio::spawn(async move {
        let report = ReloadReport { changes: vec!["output siem: restarted".into()], warnings: Vec::new() };
        let refused = ReloadRefused { reason: "1 error".into(), diagnostics: vec!["a:1:2: error: no".into()] };
        for outcome in [Ok(report), Err(refused)] {
            let Some(Request::Reload { reply }) = world.requests.recv().await else { panic!("a reload") };
            reply.send(outcome).unwrap();
        }
    });
    let changes = world.client.reload().await.unwrap().unwrap().changes;
    assert_eq!(changes, ["output siem: restarted"]);
    assert_eq!(world.client.reload().await.unwrap().unwrap_err().reason, "1 error");
    // The main loop has ended.
    assert_eq!(world.client.reload().await.unwrap().unwrap_err().diagnostics.len(), 0);
    let (status, _) = world.client.get("/reload").await.unwrap();
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn tail_shows_what_comes_and_counts_what_it_does_not_show() {
    let world = world();
    world.node.receive(&[b"<13>before anyone looked"]).await;
    let mut lines = world.client.tail("limit=2&raw=1").await.unwrap();
    world.node.receive(&[b"<11>one", b"<11>two", b"<11>three", b"<11>four", b"<11>five", b"<11>six"]).await;
    let mut seen = Vec::new();
    let mut skipped = 0;
    while seen.len() + skipped < 6 {
        let line: Value = serde_json::from_slice(&lines.next().await.unwrap().unwrap()).unwrap();
        match line["skipped"].as_u64() {
            Some(count) => skipped += count as usize,
            None => seen.push((line["msg"].as_str().unwrap().to_owned(), line["raw_b64"].is_string())),
        }
    }
    assert_eq!((seen, skipped), (vec![("three".to_owned(), true), ("six".to_owned(), true)], 4));
    let refused = world.client.tail("limit=none").await.unwrap_err();
    assert!(matches!(refused, ClientError::Answer { status: StatusCode::BAD_REQUEST, .. }), "{refused}");
}

#[tokio::test]
async fn a_socket_is_taken_over_from_the_dead_only() {
    let scratch = Scratch::new();
    let path = scratch.path().join("control.sock");
    let living = server::bind(&path).unwrap();
    assert_eq!(server::bind(&path).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    drop(living);
    assert!(path.exists());
    drop(server::bind(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "a file").unwrap();
    assert_eq!(server::bind(&path).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}

#[tokio::test]
async fn nobody_there_is_told_apart() {
    let scratch = Scratch::new();
    let path = scratch.path().join("control.sock");
    let error = Client::new(&path).status().await.unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable(why) if why.contains("there is no control socket")), "{error}");
    drop(server::bind(&path).unwrap());
    let error = Client::new(&path).status().await.unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable(why) if why.contains("nobody answers")), "{error}");
}

async fn ask_admin(address: std::net::SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn the_admin_listener_shows_a_page_and_changes_nothing() {
    let node = TestNode::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(crate::admin::serve(listener, Arc::clone(&node.observed)));
    let get = async |path: &str| {
        ask_admin(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
    };
    let page = get("/").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("content-security-policy: default-src 'none'"), "{page}");
    assert!(get("/page.js").await.contains("text/javascript"));
    assert!(get("/status.json").await.contains("\"standalone\""));
    assert!(get("/metrics").await.ends_with("# EOF\n"));
    assert!(get("/tail").await.starts_with("HTTP/1.1 404"));
    assert!(get("/reload").await.starts_with("HTTP/1.1 404"));
    let post = "POST /reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert!(ask_admin(address, post).await.starts_with("HTTP/1.1 405"));
    let head = "HEAD /status.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert!(ask_admin(address, head).await.ends_with("\r\n\r\n"));
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(64 * 1024));
    assert!(!ask_admin(address, &endless).await.starts_with("HTTP/1.1 200"));
}
