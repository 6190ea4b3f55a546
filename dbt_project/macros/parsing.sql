{# Why a message is not a login, or null when it is one; the first reason found. Never a value. #}
{% macro rejection_reason(event, sent_at) -%}
    {%- set longest = {'user_id': 128, 'device_type': 32, 'locale': 32} -%}
    case
        when {{ event }} is null then 'not_json'
        when jsonb_typeof({{ event }}) <> 'object' then 'not_an_object'
        when {{ sent_at }} is null then 'missing_sent_at'
        {%- for field in ['user_id', 'app_version', 'device_type', 'ip', 'locale', 'device_id'] %}
        {%- if field != 'locale' %}
        when coalesce(jsonb_typeof({{ event }} -> '{{ field }}'), 'null') = 'null' then 'missing_{{ field }}'
        {%- endif %}
        when jsonb_typeof({{ event }} -> '{{ field }}') not in ('string', 'null') then '{{ field }}_not_text'
        {%- if field != 'locale' %}
        when masking.canonical_text({{ event }} ->> '{{ field }}') is null then 'missing_{{ field }}'
        {%- endif %}
        {%- if field in longest %}
        when length({{ event }} ->> '{{ field }}') > {{ longest[field] }} then '{{ field }}_too_long'
        {%- endif %}
        {%- endfor %}
        when {{ event }} ->> 'app_version' !~ '^[0-9]+(\.[0-9]+){0,2}$' then 'app_version_malformed'
        when {{ event }} ->> 'app_version' !~ '^0*[0-9]{1,4}(\.0*[0-9]{1,3}){0,2}$' then 'app_version_out_of_range'
        when split_part({{ event }} ->> 'app_version', '.', 1)::integer > 2146 then 'app_version_out_of_range'
        {#- an app that puts the device id or the address where analysts can read it #}
        {%- for field in ['user_id', 'device_type', 'locale'] %}
        when masking.canonical_text({{ event }} ->> '{{ field }}') in (
            masking.canonical_text({{ event }} ->> 'ip'), masking.canonical_text({{ event }} ->> 'device_id')
        ) then 'exposes_plain_value'
        {%- endfor %}
    end
{%- endmacro %}


{# M.m.p as one integer that sorts as versions do: M * 1000000 + m * 1000 + p; a part left out is 0. #}
{% macro pack_app_version(version) -%}
    split_part({{ version }}, '.', 1)::integer * 1000000
    + coalesce(nullif(split_part({{ version }}, '.', 2), ''), '0')::integer * 1000
    + coalesce(nullif(split_part({{ version }}, '.', 3), ''), '0')::integer
{%- endmacro %}
