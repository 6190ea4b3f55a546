{# One row per user and value of a masked field. What stands for "none" is no value, but a login with it is a login. #}
{% macro users_with_their(field) -%}
with

logins as (

    select * from {{ ref('user_logins') }}

),

pairs as (

    select
        user_id,
        masked_{{ field }},
        {{ field }}_is_placeholder is true as is_placeholder,
        count(*) as logins,
        min(logged_in_at) as first_seen_at,
        max(logged_in_at) as last_seen_at
    from logins
    group by user_id, masked_{{ field }}, {{ field }}_is_placeholder is true

),

compared as (

    select
        *,
        {{ came_later() }} as came_later
    from pairs

),

without_placeholders as (

    select
        user_id,
        masked_{{ field }},
        logins,
        first_seen_at,
        last_seen_at,
        came_later
    from compared
    where not is_placeholder

)

select * from without_placeholders
{%- endmacro %}


{# Whether the user of a pair had logged in before it. By an index, so that all users of one device are found without
   reading the others. #}
{% macro came_later_by_index() -%}
    exists (
        select from {{ ref('user_logins') }} as earlier
        where earlier.user_id = pairs.user_id and earlier.logged_in_at < pairs.first_seen_at
    )
{%- endmacro %}


{# The values of a masked field that several users logged in with. What stands for "none" is not one. #}
{% macro shared_by_users(field) -%}
with

logins as (

    select * from {{ ref('user_logins') }}

),

counted as (

    select
        masked_{{ field }},
        count(distinct user_id) as users,
        count(*) as logins,
        min(create_date) as first_seen_on,
        max(create_date) as last_seen_on,
        {{ users_in(days=1) }} as users_last_day,
        {{ users_in(days=7) }} as users_last_week,
        {{ users_in(days=30) }} as users_last_30_days
    from logins
    where
        {{ field }}_is_placeholder is not true
        and masked_{{ field }} in ({{ shared(field) }})
    group by masked_{{ field }}

)

select * from counted
{%- endmacro %}


{# Of the values of a masked field, those that several users logged in with, and no more than `at_most`. They are found
   in an index of user_logins that has these three columns in this order: no row is read, and nothing is sorted. #}
{% macro shared(field, at_most=none) -%}
    select masked_{{ field }}
    from (
        select distinct
            masked_{{ field }},
            user_id
        from {{ ref('user_logins') }}
        where {{ field }}_is_placeholder is not true
    ) as users
    group by masked_{{ field }}
    having count(*) {{ '> 1' if at_most is none else 'between 2 and ' ~ at_most }}
{%- endmacro %}


{# In seconds: PostgreSQL's days follow the clocks of the session's time zone. A login is at most as much later than
   logged_in_at as the declaration leaves open. #}
{% macro users_in(days) -%}
    {%- set open = {'second': 1, 'minute': 60, 'hour': 3600, 'day': 86400}[declared_event('logins').shown_to_the] -%}
    count(distinct user_id) filter (
        where logged_in_at > now() - interval '{{ 86400 * days + open }} seconds' and logged_in_at <= now()
    )
{%- endmacro %}


{# Whether a login has another value than the one before it. Null where either stands for "none". #}
{% macro changed(field) -%}
    case
        when {{ field }}_is_placeholder is not true and lag({{ field }}_is_placeholder) over by_time is not true
            then masked_{{ field }} != lag(masked_{{ field }}) over by_time
    end
{%- endmacro %}


{# The largest number of users of an address that is taken to connect them. #}
{% macro users_that_an_ip_connects() -%}
    {%- set users = var('users_that_an_ip_connects') -%}
    {%- if users is not integer or users < 0 -%}
        {%- do wrong('vars', 'users_that_an_ip_connects: ' ~ users ~ ' is not a number of users; 0 leaves out all addresses') -%}
    {%- endif -%}
    {{ users }}
{%- endmacro %}
