-- Each masked value of each message, its original and its token, for the functions that seal and erase. A rejected
-- message publishes none; it may have been accepted, and sealed, before the declaration changed.
{{ config(grants={'select': ['pipeline_owner']}) }}
{%- for field in declared_fields(masked=true) %}

select
    message_id,
    load_id,
    '{{ field.masked_as }}' as kind,
    {% if field.form == 'address' %}regexp_replace({{ field.name }}, '^raw:', ''){% else %}{{ field.name }}{% endif %} as original,
    token_of_{{ field.name }} as token,
    mask_key_version,
    reason is null as is_accepted
from {{ ref('base_sqs__messages') }}
where {{ field.name }} is not null
{%- if not loop.last %}
union all
{%- endif %}
{%- endfor %}
