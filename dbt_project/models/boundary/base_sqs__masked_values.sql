-- Each masked value of each accepted message, its original and its token, for the functions that seal and erase.
{{ config(grants={'select': ['pipeline_owner']}) }}
{%- for field in declared_fields(masked=true) %}

select
    message_id,
    load_id,
    '{{ field.masked_as }}' as kind,
    {% if field.form == 'address' %}regexp_replace({{ field.name }}, '^raw:', ''){% else %}{{ field.name }}{% endif %} as original,
    masked_{{ field.name }} as token,
    mask_key_version
from {{ ref('base_sqs__messages') }}
where masked_{{ field.name }} is not null
{%- if not loop.last %}
union all
{%- endif %}
{%- endfor %}
