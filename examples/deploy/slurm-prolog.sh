#!/bin/sh
# A prolog of Slurm (Prolog= in slurm.conf): before a job's first step, root pulls the pack to the node's disk, once a node whatever
# starts there. Jobs only read it: ROPEJIT_CACHE_PATH=/var/lib/ropejit/packs, in TaskProlog or in the users' environment.
# A prolog that fails drains its node: whatever happens here, the job starts, cold if need be.
set -u

URL=${ROPEJIT_PACKS:-https://packs.example.com/ropejit}
KEY=${ROPEJIT_PUBKEY_FILE:-/etc/ropejit/packs.pub}
INTO=${ROPEJIT_PACKS_FOLDER:-/var/lib/ropejit/packs}
ROPEJIT=${ROPEJIT_PROGRAM:-/usr/local/bin/ropejit}

if ! [ -x "$ROPEJIT" ] || ! [ -r "$KEY" ]; then
    logger -t ropejit "no pack: $ROPEJIT or $KEY is missing" 2>/dev/null
    exit 0
fi

umask 022
# The last line of minisign's file is the key. The architecture is asked of the node's GPU.
"$ROPEJIT" pull "$URL" --into "$INTO" --pubkey "$(tail -n 1 "$KEY")" --timeout 20 ${ROPEJIT_ARCH:+--arch "$ROPEJIT_ARCH"} 2>&1 |
    logger -t ropejit 2>/dev/null
[ -d "$INTO" ] && chmod -R a+rX "$INTO"
exit 0
