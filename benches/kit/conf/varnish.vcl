vcl 4.1;
backend default {
  .host = "127.0.0.1"; .port = "@UPSTREAM@";
  .connect_timeout = 5s; .first_byte_timeout = @SECONDS@s; .between_bytes_timeout = @SECONDS@s; .max_connections = 0;
}
sub vcl_recv {
  if (req.method == "GET" && req.url ~ "^/v2/") { return (hash); }
  return (pass);
}
sub vcl_hash { hash_data(req.http.Authorization); hash_data(req.url); return (lookup); }
sub vcl_backend_response {
  set beresp.grace = 0s; set beresp.keep = 0s;
  if (beresp.status == 200) {
    unset beresp.http.Cache-Control; unset beresp.http.Vary; set beresp.ttl = 1h; set beresp.uncacheable = false;
  } else {
    # Serialized: better for long-polls than all at once.
    set beresp.ttl = 0s;
  }
  return (deliver);
}
