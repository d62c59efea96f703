//! Services of a cluster under the server's name: shown, listed, entered, taken back.

use ionet_api::exposed::{ExposeRequest, ExposedService, ExposedServices, SERVER_SEES};
use ionet_api::rest::ClusterView;
use ionet_domain::CommandId;
use ionet_domain::order::expose::{Access, Kind};
use ionet_server::{AcmeConfig, AppsConfig, AppsTls};

use crate::args::{AppsArgs, ClusterOrPort, ClusterPort, ExposeArgs, ExposeCommand};
use crate::context::{Context, now_ms, random};
use crate::error::{CliError, Result};
use crate::out::Out;

/// `ionet expose`
pub(crate) async fn expose(context: &Context, args: &ExposeArgs) -> Result {
    match (&args.command, args.target) {
        (Some(ExposeCommand::List { cluster }), _) => {
            let shown = context.session().await?.client.exposed(*cluster).await?;
            context.out.answer(&shown, |out| list(out, &shown));
            Ok(())
        }
        (Some(ExposeCommand::Open { cluster }), _) => {
            let ticket = context.session().await?.client.enter(*cluster).await?;
            context.out.answer(&ticket, |out| {
                out.line(ticket.url.expose());
                out.line("good once, for a minute: open it in a browser; it stays signed in for 12 hours");
            });
            Ok(())
        }
        (Some(ExposeCommand::Remove { place }), _) => remove(context, *place).await,
        (None, Some(target)) => show(context, args, target).await,
        (None, None) => Err(CliError::usage("say which port: ionet expose clu_...:8000")),
    }
}

async fn show(context: &Context, args: &ExposeArgs, ClusterPort { cluster, port }: ClusterPort) -> Result {
    let kind = match (args.tcp, args.udp) {
        (true, _) => Kind::Tcp,
        (_, true) => Kind::Udp,
        _ => Kind::Http,
    };
    let access = match (args.public, args.accounts.is_empty()) {
        (true, _) => Access::Public,
        (_, false) => Access::Accounts,
        _ => Access::Owner,
    };
    let accounts = args.accounts.iter().copied().collect();
    let id = CommandId::from_parts(now_ms(), random()?);
    let request = ExposeRequest { id, kind, port, member: args.member, access, accounts };
    let client = context.session().await?.client;
    let before = client.exposed(cluster).await?;
    let shown = client.expose(cluster, &request).await?;
    let replaced =
        before.services.iter().find(|was| kind == Kind::Http && was.kind == kind && was.port != port);
    context.out.answer(&shown, |out| {
        if let Some(was) = replaced {
            out.line(format!(
                "port {port} takes the place of port {}: a cluster has one HTTP service",
                was.port
            ));
        }
        list(out, &shown);
        if kind == Kind::Http && access != Access::Public {
            out.line(format!("a browser comes in by a link: ionet expose open {cluster}"));
        }
    });
    Ok(())
}

async fn remove(context: &Context, ClusterOrPort { cluster, port }: ClusterOrPort) -> Result {
    let client = context.session().await?.client;
    let mut shown = client.exposed(cluster).await?;
    let gone: Vec<_> =
        shown.services.iter().filter(|service| port.is_none_or(|port| service.port == port)).collect();
    if gone.is_empty() {
        let what = port.map_or_else(
            || format!("{cluster} exposes nothing"),
            |port| format!("port {port} of {cluster} is not exposed"),
        );
        return Err(
            CliError::refused("no_change", what).help(format!("'ionet expose list {cluster}' lists what is"))
        );
    }
    let gone: Vec<_> = gone.into_iter().map(|service| (service.kind, service.port)).collect();
    for (kind, port) in gone {
        shown = client.unexpose(cluster, kind, port).await?;
    }
    context.out.answer(&shown, |out| list(out, &shown));
    Ok(())
}

fn list(out: Out, shown: &ExposedServices) {
    if shown.services.is_empty() {
        return out.line(format!("{} exposes nothing", shown.cluster));
    }
    rows(out, &shown.services);
}

/// What a cluster exposes, for `ionet cluster show`; nothing where it exposes nothing.
pub(crate) fn of(out: Out, view: &ClusterView) {
    if !view.exposed.is_empty() {
        rows(out, &view.exposed);
    }
}

fn rows(out: Out, services: &[ExposedService]) {
    let table = services.iter().map(|service| {
        let port = format!("{}/{}", service.kind, service.port);
        let url = service.url.clone().unwrap_or_else(|| "not by this server".into());
        vec![port, service.member.to_string(), access(service), url, service.live.to_string()]
    });
    out.table(&["EXPOSED", "MEMBER", "FOR", "WHERE", "LIVE"], &[4], table.collect());
    out.lines(services.iter().filter_map(|service| service.trouble.clone()));
    out.line(SERVER_SEES);
}

fn access(service: &ExposedService) -> String {
    match service.access {
        Access::Owner => "its account".into(),
        Access::Accounts => format!("its account and {}", service.accounts.len()),
        Access::Public => "everybody".into(),
    }
}

/// What a server's words come to.
pub(crate) fn apps(args: &AppsArgs) -> Option<AppsConfig> {
    let listen = args.apps_listen?;
    let tls = match (&args.apps_cert, &args.apps_key, &args.apps_acme) {
        (Some(cert), Some(key), _) => AppsTls::Files { cert: cert.clone(), key: key.clone() },
        (.., Some(directory)) => AppsTls::Acme(AcmeConfig {
            directory: directory.clone(),
            contact: args.apps_acme_contact.clone(),
            root: args.apps_acme_root.clone(),
        }),
        _ => AppsTls::None,
    };
    Some(AppsConfig {
        listen,
        domain: args.apps_domain.clone(),
        ports: Some(args.apps_ports),
        tls,
        http_listen: args.apps_http_listen,
        ..AppsConfig::local()
    })
}
