//! Who serves whom: an account's country, a device's terms, the operator's deny list.

use std::collections::BTreeSet;

use ionet_api::WalletKey;
use ionet_api::rest::{Declared, DenyListView, DenyOrder, DeviceTerms, OperatorRequest};
use ionet_domain::DeviceId;
use ionet_domain::market::{Country, Denials, DenyList};

use crate::args::{DeniedArgs, OperatorCommand};
use crate::context::{Context, now_ms};
use crate::error::{CliError, Result, io};
use crate::out::Out;

/// `ionet country`
pub(crate) async fn country(context: &Context, country: Option<Country>) -> Result {
    let client = context.session().await?.client;
    let declared = match country {
        Some(_) => client.declare(&Declared { country }).await?,
        None => client.country().await?,
    };
    context.out.answer(&declared, |out| {
        out.line(match declared.country {
            Some(country) => format!("you declared {country}; suppliers' terms go by it"),
            None => "you declared no country ('ionet country XX' does)".to_owned(),
        });
    });
    Ok(())
}

fn denials(args: &DeniedArgs) -> Denials {
    Denials {
        accounts: args.account.iter().copied().collect(),
        countries: args.country.iter().copied().collect(),
        kinds: args.kind.iter().copied().collect(),
    }
}

/// `ionet devices terms`
pub(crate) async fn terms(context: &Context, device: DeviceId, args: &DeniedArgs, serve_all: bool) -> Result {
    let client = context.session().await?.client;
    let denied = denials(args);
    let terms = if denied.is_none() && !serve_all {
        client.terms(device).await?
    } else {
        client.set_terms(device, &DeviceTerms { denied }).await?
    };
    context.out.answer(&terms, |out| show(out, &terms.denied, "it serves everybody, and every kind of work"));
    Ok(())
}

fn show(out: Out, denied: &Denials, none: &str) {
    if denied.is_none() {
        return out.line(none);
    }
    let accounts = denied.accounts.iter().map(|account| ("account", account.to_string()));
    let countries = denied.countries.iter().map(|country| ("country", country.to_string()));
    let kinds = denied.kinds.iter().map(|kind| ("kind", kind.to_string()));
    let rows = accounts.chain(countries).chain(kinds);
    out.table(&["NOT SERVED", ""], &[], rows.map(|(what, which)| vec![what.to_owned(), which]).collect());
}

/// `ionet operator`
pub(crate) async fn operator(context: &Context, command: &OperatorCommand) -> Result {
    let list = match command {
        OperatorCommand::DenyList => ask(context, None).await?,
        OperatorCommand::Deny { denied, device } => {
            let (mut list, more) = (ask(context, None).await?.list, denials(denied));
            list.renters.accounts.extend(more.accounts);
            list.renters.countries.extend(more.countries);
            list.renters.kinds.extend(more.kinds);
            list.devices.extend(device);
            ask(context, Some(list)).await?
        }
        OperatorCommand::Allow { denied, device } => {
            let (mut list, less) = (ask(context, None).await?.list, denials(denied));
            list.renters.accounts.retain(|account| !less.accounts.contains(account));
            list.renters.countries.retain(|country| !less.countries.contains(country));
            list.renters.kinds.retain(|kind| !less.kinds.contains(kind));
            let devices: BTreeSet<_> = device.iter().copied().collect();
            list.devices.retain(|device| !devices.contains(device));
            ask(context, Some(list)).await?
        }
    };
    context.out.answer(&list, |out| {
        show(out, &list.list.renters, "no renter and no kind of work is denied");
        list.list.devices.iter().for_each(|device| out.line(format!("device {device} gets no new leases")));
    });
    Ok(())
}

/// Asks the server as its operator: the key in its data directory signs.
async fn ask(context: &Context, list: Option<DenyList>) -> Result<DenyListView> {
    let path = context.path("server").join("signing.key");
    let seed = std::fs::read(&path).map_err(io(format!("read the server's key {}", path.display())))?;
    let seed: [u8; 32] = seed.try_into().map_err(|_| {
        CliError::refused("bad_key_file", format!("{} is no key of a server", path.display()))
            .help("run it on the server's machine with the server's --data-dir")
    })?;
    let (client, network) = context.visitor().await?;
    let order = DenyOrder { at_ms: now_ms(), list };
    let signature = WalletKey::from_seed(&seed).sign(&network.name, &order);
    Ok(client.deny_list(&OperatorRequest { order, signature }).await?)
}
