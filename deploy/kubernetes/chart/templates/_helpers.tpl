{{- define "fl-tiny.labels" -}}
app.kubernetes.io/name: fl-tiny
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "fl-tiny.image" -}}
{{ .root.Values.image.registry }}/fl-tiny-{{ .role }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- /* What every container of ours may do: nothing. User 9470 is the images'. */}}
{{- define "fl-tiny.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 9470
runAsGroup: 9470
capabilities:
  drop: [ALL]
{{- end }}

{{- define "fl-tiny.health" -}}
exec:
  command: [fl-tiny, {{ . }}, status, /var/lib/fl-tiny/{{ . }}, --running]
timeoutSeconds: 20  # Python starts in 2 s on a Raspberry Pi Zero 2 W that trains (guess)
{{- end }}
