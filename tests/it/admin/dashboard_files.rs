//! Responses with the files of the dashboard. The page in a browser is tested in `dashboard.rs`.

use std::path::Path;

use crate::harness::admin_client::{AdminClient, field, text};
use crate::harness::gateway::TestGateway;

#[tokio::test]
async fn each_file_has_its_content_type_and_an_etag() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/dashboard");
    let files = ["", "uplot"].iter().flat_map(|dir| std::fs::read_dir(root.join(dir)).unwrap());
    let files: Vec<_> = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file() && !path.ends_with("mod.rs"))
        .collect();
    assert!(files.len() >= 20, "{files:?}");
    for file in &files {
        let name = file.strip_prefix(&root).unwrap().to_str().unwrap();
        let path = if name == "index.html" { "/".to_owned() } else { format!("/dashboard/{name}") };
        let response = admin.get(&path).await;
        assert_eq!(
            (response.status().as_u16(), text(&response)),
            (200, &*std::fs::read_to_string(file).unwrap())
        );
        let content_type = match file.extension().map(|extension| extension.to_str().unwrap()) {
            Some("html") => "text/html; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/plain; charset=utf-8",
        };
        assert_eq!(field(&response, "content-type"), content_type, "{path}");
        let policy = field(&response, "content-security-policy");
        for rule in ["default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"]
        {
            assert!(policy.contains(rule), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(field(&response, "x-content-type-options"), "nosniff");
        assert_eq!(field(&response, "referrer-policy"), "no-referrer");
        assert_eq!(field(&response, "cache-control"), "no-cache");

        let etag = field(&response, "etag");
        let again = admin.send("GET", &path, &[("if-none-match", etag)]).await;
        assert_eq!((again.status().as_u16(), again.body().len()), (304, 0), "{path}");
        assert_eq!(admin.send("GET", &path, &[("if-none-match", "\"old\"")]).await.status(), 200);
        let head = admin.send("HEAD", &path, &[]).await;
        assert_eq!((head.status().as_u16(), field(&head, "etag")), (200, etag));
        assert_eq!(admin.send("POST", &path, &[]).await.status(), 405);
    }
}

#[tokio::test]
async fn the_page_refers_to_its_own_files_only() {
    let mut gateway = TestGateway::new().await;
    let admin = AdminClient::open(&mut gateway).await;
    let page = admin.get("/").await;
    let page = text(&page);
    for inline in ["style=", "onclick", "onload", "<style", "http://", "https://", "//"] {
        assert!(!page.contains(inline), "{inline}");
    }
    let named = page.split(['"', '\'']).skip(1).step_by(2);
    let files: Vec<_> = named.filter(|value| value.starts_with("dashboard/")).collect();
    assert!(files.len() >= 9, "{files:?}");
    for file in files {
        assert_eq!(admin.get(&format!("/{file}")).await.status(), 200, "{file}");
    }
}
