//! Files in `deploy/`, checked by the tools of their formats.

pub(crate) mod alerts_and_dashboards;
pub(crate) mod behind_nginx_haproxy;
pub(crate) mod deploy_compose_kubernetes;
pub(crate) mod deploy_image_systemd;
