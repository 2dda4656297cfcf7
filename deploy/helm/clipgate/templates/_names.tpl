{{- define "clipgate.name" -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "clipgate.selector" -}}
app.kubernetes.io/name: clipgate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "clipgate.labels" -}}
{{ include "clipgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}
