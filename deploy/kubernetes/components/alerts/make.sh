#!/usr/bin/env bash
# Makes prometheusrule.yaml of deploy/dashboards/alerts.yaml, which a kustomization can not read: it lies outside. Run this
# after each change of the alerts; deploy/check.sh compares the two.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
{
    cat <<'END'
# Made by make.sh of deploy/dashboards/alerts.yaml: change the alerts there.
# yamllint disable rule:line-length
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: formid
  labels:
    app.kubernetes.io/part-of: formid
    release: kube-prometheus-stack
spec:
END
    grep -v '^#' ../../../dashboards/alerts.yaml | sed 's/^./  &/'
} >prometheusrule.yaml
