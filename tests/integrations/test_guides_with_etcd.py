"""What the pages tell of etcd is done as it stands, with three members at the addresses that they name."""

from __future__ import annotations

import guides
import pytest
from etcd_servers import why_not
from skips import has_no_mounts, has_no_namespaces, leaves_out_slow

pytestmark = [
    pytest.mark.skipif(leaves_out_slow(), reason="make test-integrations runs it"),
    pytest.mark.skipif(bool(why_not()), reason="NOT TESTED: this needs etcd"),
    pytest.mark.skipif(
        has_no_namespaces() or has_no_mounts(), reason="NOT TESTED: needs namespaces and the right to mount"
    ),
]
MEMBERS = r"""
at="three members of etcd"
cat > members.py <<'END OF MEMBERS'
import shutil
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from certificates import Authority
from etcd_servers import Certificates, Etcd, Member

hosts = ["10.0.0.4", "10.0.0.5", "10.0.0.6"]
made = Certificates(Path("certificates"), Authority(), hosts)
shutil.copy(made.ca, "ca.pem")
for name in "abc":
    shutil.copy(made.cert, f"{name}.pem")
    shutil.copy(made.key, f"{name}.key")
members = []
for host in hosts:
    folder = Path(f"member-{host}")
    members.append(Member(folder.name, host, folder, lambda *words: [*words], made.members))
    members[-1].client = f"{host}:2379"
Etcd(members).settled()
END OF MEMBERS
PYTHONPATH=$REPOSITORY/tests python members.py $REPOSITORY/tests
"""
STORE = "etcd://10.0.0.4:2379,10.0.0.5:2379,10.0.0.6:2379"
SHOWN = "--store-ca ca.pem --store-cert a.pem --store-key a.key"
MOVED = f"""
at="the cluster is moved to etcd"
on c 'lifl down'
on b 'lifl down'
on a 'lifl down'
on a 'lifl store migrate sqlite {STORE} {SHOWN}'
on a 'lifl up -d --listen 10.0.0.1:7433 --control 10.0.0.1:7434 --store {STORE} {SHOWN}'
"""
RAN = """
at="a job has run"
lifl up -d
lifl submit mine.toml
python trainer.py hospital-1 &
python trainer.py hospital-2
wait
lifl down
"""
BEFORE = {"docs/cluster.md": MEMBERS + MOVED, "docs/failover.md": MEMBERS + RAN}


@pytest.mark.parametrize("page", BEFORE)
def test_what_a_page_tells_to_do_with_etcd_can_be_done(page: str) -> None:
    done = guides.run(guides.ROOT / page, {"needs three members of etcd": BEFORE[page]})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "etcd" in done.stdout
