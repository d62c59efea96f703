//! Simulated devices over HTTP: marked in every table, quoted and explained, and never ordered.

use ionet_api::rest::DeviceFilter;
use ionet_domain::command::CommandBody;
use ionet_domain::market::Request;
use ionet_domain::{Actor, Command, Params};
use ionet_server::simulated::fleet;
use ionet_server::{Server, ServerConfig};

use crate::http_kit::{Network, order, request, run, wallet};

#[test]
fn simulated_devices_are_shown_quoted_and_explained_and_never_ordered() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let params = Params { simulated_devices: true, ..Params::default() };
        let config = ServerConfig { params, ..ServerConfig::local(dir.path().to_owned()) };
        let network = Network { server: Server::start(config).await.expect("server"), dir };
        let devices = fleet(0, 300, network.handle().now_ms());
        let body = CommandBody::Simulate { devices };
        network.handle().submit(Command { id: None, actor: Actor::Server, body }).await.expect("simulate");

        let me = wallet(2);
        network.fund(me.address(), 1_000_000_000).await;
        let client = network.signed_in(&me).await;
        let devices = client.devices(&DeviceFilter::default()).await.expect("devices");
        assert_eq!(devices.len(), 300);
        assert!(devices.iter().all(|device| device.simulated && device.status == "simulated"));
        let board = client.prices(None).await.expect("prices");
        assert!(!board.classes.is_empty() && board.classes.iter().all(|class| class.simulated));

        let real = client.quote(&request()).await.expect_err("a real seat");
        assert_eq!(real.code(), "no_capacity");
        let wanted = Request { simulated: true, ..request() };
        let quote = client.quote(&wanted).await.expect("a quote for show");
        assert!(quote.quote.request.simulated);
        let refused = client.order(&order(network.order_id(), quote)).await.expect_err("ordered");
        assert_eq!(refused.code(), "unsupported");
        assert!(refused.to_string().contains("nothing runs on them"), "{refused}");

        let explained = client.explain_device(devices[0].id).await.expect("explained");
        assert!(explained.explanation.closed[0].contains("simulated"));
        let mut wanted = Request { members: 256, ..wanted };
        wanted.per_member.gpus = 9;
        let nearest = client.explain(&wanted).await.expect("explained").explanation.nearest;
        let short: Vec<_> =
            nearest.iter().map(|miss| devices.iter().find(|one| one.id == miss.device)).collect();
        assert!(!short.is_empty() && short.iter().all(|one| one.is_some_and(|one| one.offered.gpus == 8)));
        network.stop().await;
    });
}
