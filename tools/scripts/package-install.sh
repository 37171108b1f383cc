#!/usr/bin/env bash
# Copyright The amsagent Authors
# SPDX-License-Identifier: Apache-2.0
#
# usage: package-install.sh install|uninstall DESTDIR PREFIX BUILD-DIR
# Puts what the packages hold below DESTDIR and PREFIX, for those without packages, or takes it away again. Both go through
# one list, so that nothing stays behind. Neither enables, starts or stops anything: `amsagent join` does the first two.
set -euo pipefail

what=$1 dest=$2 prefix=${3%/} build=$4
data=$build/package/data
case $prefix in
/*) ;;
*)
  echo "PREFIX must be an absolute path, not '$prefix'" >&2
  exit 2
  ;;
esac

put() { # put MODE FROM TO
  if [ "$what" = uninstall ]; then
    rm -f "$dest$3"
  else
    install -D -m "$1" "$2" "$dest$3"
  fi
}

put 0755 "$build/amsagent" "$prefix/bin/amsagent"
for unit in packaging/systemd/*.service; do
  to=$prefix/lib/systemd/system/${unit##*/}
  put 0644 "$unit" "$to"
  # The units name the program where the packages put it.
  [ "$what" = uninstall ] || sed -i "s|/usr/bin/amsagent|$prefix/bin/amsagent|" "$dest$to"
done
if [ "$what" = install ]; then
  for page in "$data"/man/*.gz; do
    name=${page##*/} section=${page%.gz}
    put 0644 "$page" "$prefix/share/man/man${section##*.}/$name"
  done
  for unit in node balance web; do
    ln -sf amsagent.service.8.gz "$dest$prefix/share/man/man8/amsagent-$unit.service.8.gz"
  done
else
  rm -f "$dest$prefix"/share/man/man[158]/amsagent{,[-.]*}.[158].gz
fi
put 0644 "$data/completions/bash" "$prefix/share/bash-completion/completions/amsagent"
put 0644 "$data/completions/zsh" "$prefix/share/zsh/site-functions/_amsagent"
put 0644 "$data/completions/fish" "$prefix/share/fish/vendor_completions.d/amsagent.fish"
put 0644 packaging/examples/config.yaml "$prefix/share/doc/amsagent/examples/config.yaml"
for example in packaging/examples/{ansible,balancers}/*; do
  put 0644 "$example" "$prefix/share/doc/amsagent/${example#packaging/}"
done
for example in packaging/monitoring/*; do
  put 0644 "$example" "$prefix/share/doc/amsagent/examples/monitoring/${example##*/}"
done
put 0644 LICENSE "$prefix/share/doc/amsagent/LICENSE"
put 0644 "$data/THIRD-PARTY-NOTICES" "$prefix/share/doc/amsagent/THIRD-PARTY-NOTICES"
if [ "$what" = uninstall ] && [ -d "$dest$prefix/share/doc/amsagent" ]; then
  find "$dest$prefix/share/doc/amsagent" -depth -type d -empty -delete
fi
if [ "$what" = install ] && [ -z "$dest" ]; then
  echo 'installed; where systemd runs: systemctl daemon-reload, then amsagent join'
fi
