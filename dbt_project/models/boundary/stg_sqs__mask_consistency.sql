-- What proves the masks right, as counts over all accepted messages in raw: by event type and masked field. Values are
-- compared by a hash, on Citus with a secret part, since what is compared travels to the coordinator there; and not by
-- a token, which is what is to be proved.

with

values_and_tokens as (
{%- set texts = [] -%}
{%- for open in declared_fields(masked=false) -%}{%- do texts.append(published_text(open, open.name)) -%}{%- endfor -%}
{%- for field in declared_fields(masked=true) %}

    select
        event_type,
        '{{ field.name }}' as field,
        encode(sha256(convert_to({{ secret_part() }} || {{ field.name }}, 'UTF8')), 'hex') as digest,
        masked_{{ field.name }} as token,
        masked_{{ field.name }} = encode(sha256(convert_to({{ field.name }}, 'UTF8')), 'hex') as is_without_key,
        not {{ field.name }}_is_placeholder and ({{ exposes(texts, field.name, field.form) }}) as is_in_the_open
    from {{ ref('base_sqs__messages') }}
    where reason is null
    {%- if not loop.last %}
    union all
    {%- endif %}
{%- endfor %}

),

counted as (

    select
        event_type,
        field,
        count(*) as messages,
        count(distinct digest) as plain_values,
        count(distinct token) as tokens,
        count(distinct row(digest, token)) filter (where digest is not null or token is not null) as pairs,
        count(*) filter (where is_without_key) as tokens_without_key,
        count(*) filter (where is_in_the_open) as messages_with_value_in_the_open
    from values_and_tokens
    group by event_type, field

)

select * from counted
