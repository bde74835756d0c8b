//! Interfaces: what they are, whether they carry, and how they answer ARP.

use std::io;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use super::{Netlink, is_absence};

/// A network device as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number; never given to another device while the namespace lives.
    pub index: u32,
    /// Its name, which may change.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its Ethernet address, if it has one that is not all zero.
    pub mac: Option<[u8; 6]>,
    /// Largest packet in bytes, without the link's own header.
    pub mtu_bytes: u32,
    /// Switched on by the administrator (`IFF_UP`).
    pub is_up: bool,
    /// Up, and the device says that it works (`IFF_RUNNING`).
    pub is_running: bool,
    /// The cable, or what stands for it, is there (`IFF_LOWER_UP`).
    pub has_carrier: bool,
}

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `lo`.
    Loopback,
    /// A device with a driver, that nobody made.
    Physical,
    /// One that was made, in the words of `ip link`: `veth`, `bridge`, `bond`, `vlan`, `macvlan`…
    Virtual(String),
}

/// How a device treats ARP: `net.ipv4.conf.DEVICE.arp_ignore` and `arp_announce`. The kernel uses the greater of this
/// and `conf.all`, which is not looked at here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 0: answers for any address of the host; 1: only for addresses of this device.
    pub ignore: u32,
    /// 0: asks with any address of the host as sender; 2: with the best one of this device.
    pub announce: u32,
}

impl Arp {
    /// What a virtual IP on `lo` needs from the link. Without `announce` the host itself would tell its neighbours, by
    /// asking for them, that it has the address (seen in a capture).
    pub const QUIET: Arp = Arp { ignore: 1, announce: 2 };
}

impl Netlink {
    /// The interface of this name, if there is one.
    ///
    /// # Errors
    /// What the system says.
    pub fn interface(&mut self, name: &str) -> io::Result<Option<Interface>> {
        let mut wanted = LinkMessage::default();
        wanted.attributes.push(LinkAttribute::IfName(name.to_owned()));
        Ok(self.link(wanted)?.map(|link| Interface::from(&link)))
    }

    /// All interfaces.
    ///
    /// # Errors
    /// What the system says.
    pub fn interfaces(&mut self) -> io::Result<Vec<Interface>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(answers.iter().filter_map(as_link).map(Interface::from).collect())
    }

    /// How the device treats ARP. `None` if it is gone, or does not speak IPv4.
    ///
    /// # Errors
    /// What the system says.
    pub fn arp(&mut self, index: u32) -> io::Result<Option<Arp>> {
        let mut wanted = LinkMessage::default();
        wanted.header.index = index;
        Ok(self
            .link(wanted)?
            .as_ref()
            .and_then(inet_configuration)
            .map(|inet| Arp { ignore: inet.arp_ignore.cast_unsigned(), announce: inet.arp_announce.cast_unsigned() }))
    }

    /// Sets how the device treats ARP, without `/proc/sys`, which a hardened service has read-only.
    ///
    /// # Errors
    /// What the system says: `EPERM` without `CAP_NET_ADMIN`, `ENODEV` if there is no such device.
    pub fn set_arp(&mut self, index: u32, arp: Arp) -> io::Result<()> {
        const IFLA_INET_CONF: u16 = 1;
        const ARP_ANNOUNCE: u16 = 18;
        const ARP_IGNORE: u16 = 19;
        // Not through `AfSpecInet::DevConfRequest`, which leaves out what is 0 and so could not undo anything.
        let settings = [
            DefaultNla::new(ARP_IGNORE, arp.ignore.to_ne_bytes().to_vec()),
            DefaultNla::new(ARP_ANNOUNCE, arp.announce.to_ne_bytes().to_vec()),
        ];
        let mut value = vec![0; settings.as_slice().buffer_len()];
        settings.as_slice().emit(&mut value);
        let inet = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, value));
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![inet])]));
        self.change(RouteNetlinkMessage::SetLink(link), 0)
    }

    fn link(&mut self, wanted: LinkMessage) -> io::Result<Option<LinkMessage>> {
        match self.ask(RouteNetlinkMessage::GetLink(wanted)) {
            Ok(answers) => Ok(answers.into_iter().find_map(into_link)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl From<&LinkMessage> for Interface {
    fn from(link: &LinkMessage) -> Interface {
        let flags = link.header.flags;
        let is_loopback = link.header.link_layer_type == LinkLayerType::Loopback;
        let mut interface = Interface {
            index: link.header.index,
            name: String::new(),
            kind: if is_loopback { Kind::Loopback } else { Kind::Physical },
            mac: None,
            mtu_bytes: 0,
            is_up: flags.contains(LinkFlags::Up),
            is_running: flags.contains(LinkFlags::Running),
            has_carrier: flags.contains(LinkFlags::LowerUp),
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Mtu(bytes) => interface.mtu_bytes = *bytes,
                LinkAttribute::Address(bytes) => {
                    interface.mac = bytes.as_slice().try_into().ok().filter(|mac| *mac != [0; 6]);
                }
                LinkAttribute::LinkInfo(infos) => {
                    let made = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(Kind::Virtual(kind.to_string())),
                        _ => None,
                    });
                    interface.kind = made.unwrap_or(interface.kind);
                }
                _ => {}
            }
        }
        interface
    }
}

fn inet_configuration(link: &LinkMessage) -> Option<&InetDevConf> {
    let families = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::AfSpecUnspec(families) => Some(families),
        _ => None,
    })?;
    let inet = families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet(inet) => Some(inet),
        _ => None,
    })?;
    inet.iter().find_map(|part| match part {
        AfSpecInet::DevConf(configuration) => Some(configuration),
        _ => None,
    })
}

fn as_link(message: &RouteNetlinkMessage) -> Option<&LinkMessage> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}

fn into_link(message: RouteNetlinkMessage) -> Option<LinkMessage> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    }
}
