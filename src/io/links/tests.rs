use super::*;

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|text| text.parse().expect("a network")).collect()
}

fn targets(layout: &Layout) -> Vec<(String, bool)> {
    routes_for(layout, 7).iter().map(|route| (route.to.to_string(), route.table == 7)).collect()
}

#[test]
fn what_the_connected_route_covers_gets_no_route_of_its_own() {
    let layout = Layout {
        mtu: 1420,
        addresses: nets(&["10.77.0.1/24", "fd77::1/64"]),
        routes: nets(&["10.77.0.2/32", "fd77::2/128", "192.168.20.0/24", "192.168.20.0/24", "10.77.0.0/16"]),
    };
    assert_eq!(targets(&layout), [("10.77.0.0/16".to_owned(), false), ("192.168.20.0/24".to_owned(), false)]);
}

#[test]
fn routes_that_would_swallow_our_own_datagrams_go_into_a_table_of_their_own() {
    let routes = nets(&["0.0.0.0/0", "128.0.0.0/1", "::/0", "2000::/3", "10.0.0.0/8", "fc00::/7"]);
    let layout = Layout { mtu: 1420, addresses: vec![], routes };
    let wide: Vec<String> = targets(&layout).into_iter().filter(|(_, own)| *own).map(|(to, _)| to).collect();
    assert_eq!(wide, ["0.0.0.0/0", "128.0.0.0/1", "::/0", "2000::/3"]);
    assert_eq!(targets(&layout).len(), 6);
}

#[test]
fn a_host_route_with_host_bits_is_the_network_that_it_means() {
    let layout = Layout { mtu: 1420, addresses: vec![], routes: nets(&["192.168.20.7/24", "192.168.20.0/24"]) };
    assert_eq!(targets(&layout), [("192.168.20.0/24".to_owned(), false)]);
}
